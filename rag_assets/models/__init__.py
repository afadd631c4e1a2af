"""Models of the pipeline: export into the lake, distillation, GPU runtime, and the models a process has loaded."""
