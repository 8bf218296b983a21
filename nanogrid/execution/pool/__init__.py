"""Who has which container: one owner per worker, and leases that end with the connection they were asked on."""
