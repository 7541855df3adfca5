"""Gates, canaries, and rollback for changes to AI model configs."""
