"""DataLoaders and a network become a trained model in a run folder."""
