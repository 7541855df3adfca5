"""Decisions: values in, values out. Nothing here knows that files, sockets, or databases exist."""
