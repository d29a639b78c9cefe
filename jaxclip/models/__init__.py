"""The Flax modules: both image towers, both text encoders, and the model that joins them."""
