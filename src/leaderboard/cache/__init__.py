"""Redis or Valkey and nothing else: the only package that imports the driver and holds Lua."""
