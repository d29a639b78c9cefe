"""An exam for `jaxclip doctor`: faults planted in PyTorch code of its own, and sound programs.

models       configs and random weights of the exam, drawn by NumPy
exam         holds the doctor's answers against what was planted; the table
__main__     python -m experiments.planted_faults
peers/       what needs torch:
  towers, resnet, program
             a small plain CLIP in PyTorch, its preprocessing and tokenizer
  block_faults, end_faults, input_faults
             the faults, each a small change of that code
  catalogue, combinations
             which faults in which model, and what a user recorded of it
  implementations
             the official code, open_clip, transformers and ours: sound, in three number formats
  record     runs a case and keeps what its user recorded
"""
