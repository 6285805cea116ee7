"""What everything stands on: errors, files, configs, commands; meshes, precision; processes."""
