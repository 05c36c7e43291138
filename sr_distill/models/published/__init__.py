"""Small published networks, written from their papers so that the authors' checkpoints load strictly."""
