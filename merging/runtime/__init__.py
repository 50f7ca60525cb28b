"""What every room stands on: config, mesh, processes, storage, progress, records."""
