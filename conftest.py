"""This repository is its own first user: fixtures and hooks for all of its tests."""

pytest_plugins = ["pytester"]
