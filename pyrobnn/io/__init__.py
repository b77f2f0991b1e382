"""Files: checkpoints and sparse storage, written whole or not at all."""
