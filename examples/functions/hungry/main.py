"""Uses more memory than any request allows: the kernel kills it, and the result reports that."""

eaten = []
while True:
    eaten.append(bytearray(16 * 1024 * 1024))
