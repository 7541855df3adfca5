"""Gates, canaries, and rollback for changes to AI model configs."""

__version__ = "0.1.0"
