"""The containers of a worker: one owner per worker, and leases that end with the connection they were requested on."""
