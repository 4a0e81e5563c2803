"""Teachers: what says, without a human, which class and which depth the pixels of an image have."""
