"""The mathematics in plain NumPy (written through ``xp``, so CuPy arrays work too), one mechanism a file."""
