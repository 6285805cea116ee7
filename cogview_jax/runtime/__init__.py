"""What every other package stands on: configuration, files, the mesh, metrics, command lines."""
