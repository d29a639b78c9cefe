"""Files to pictures, pictures to pixels."""
