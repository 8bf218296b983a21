"""Takes more memory than any request gives it: the kernel ends it, and the result says so."""

eaten = []
while True:
    eaten.append(bytearray(16 * 1024 * 1024))
