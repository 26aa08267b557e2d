"""Where a model goes wrong: confusion, losses, heat maps, suspected labels."""
