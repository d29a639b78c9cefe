"""Where pictures with words come from, and how they become batches."""
