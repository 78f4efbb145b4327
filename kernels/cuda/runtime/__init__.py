"""From a CUDA source to a launch: compiling, parameters, arrays, and errors in one sentence."""
