"""A name becomes a network: a pretrained body, a head, and the way both are kept on disk."""
