"""What the first process of a warm container is made of. Imports nothing but what is built in; Python 3.9 and newer."""
