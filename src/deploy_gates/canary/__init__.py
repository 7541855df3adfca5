"""Where the tallies of a canary come from: the store, Prometheus, a recorded stream, simulated traffic."""
