"""What the parts of mpcompile agree on: segments, inputs, backends, tasks, operating points. Imports no torch."""
