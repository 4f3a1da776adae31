"""Tables, curves and pictures from run folders."""
