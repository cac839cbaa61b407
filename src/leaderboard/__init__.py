"""A leaderboard service: PostgreSQL is the source of truth, Redis or Valkey makes the common reads fast."""
