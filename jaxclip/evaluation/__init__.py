"""How well a model does: zero-shot, retrieval and linear probe, with the released prompts."""
