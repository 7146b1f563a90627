"""Real parts together: Valkey, LiveKit, processes, signals."""
