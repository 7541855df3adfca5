"""The button: a release travels from its evidence to all of production, or back, and nobody watches.

`carrying` is the loop: look, do the next step, record it, repeat. `checkout` is the repository that a release
comes from. `caretaking` goes on with what a runner left behind.
"""
