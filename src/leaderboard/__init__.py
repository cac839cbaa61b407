"""A leaderboard service on PostgreSQL, with Redis or Valkey for fast reads."""
