"""Token sequences on disk: shards, how they are planned, made by worker processes, and reported."""
