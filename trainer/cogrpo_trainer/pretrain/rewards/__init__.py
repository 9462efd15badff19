"""Trains the rewards of the embedded world: two CLIPs and a preference for clean pictures."""
