"""Where pretrained weights come from, in order, and how they are loaded."""
