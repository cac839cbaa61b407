"""A leaderboard service on PostgreSQL, with Redis or Valkey as a cache."""
