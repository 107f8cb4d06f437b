"""The commands of the command line, one a file: `run(arguments)` turns arguments into one call of the library."""
