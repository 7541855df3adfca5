"""`deploy-gates demo`: a good change shipped and a bad one rolled back, by everything that is real here.

Two things are simulated, and say so wherever they show up: the users, and the model that answers. Gates,
store, runner, client and canary are those of every day, in processes of their own.
"""
