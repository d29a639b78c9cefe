"""The faulty and the sound programs of the exam, in PyTorch."""
