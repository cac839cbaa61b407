"""A leaderboard service: PostgreSQL is the truth, Redis or Valkey makes the common reads fast."""
