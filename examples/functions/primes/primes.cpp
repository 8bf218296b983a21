// Counts the primes up to the number on stdin (the payload is a JSON number), and writes the count as the value.
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <vector>

int main() {
    long limit = 0;
    if (!(std::cin >> limit) || limit < 0 || limit > 50'000'000) {
        std::cerr << "the payload must be a number from 0 to 50000000\n";
        return 2;
    }
    std::vector<bool> composite(limit + 1);
    long count = 0;
    for (long number = 2; number <= limit; ++number) {
        if (composite[number]) {
            continue;
        }
        ++count;
        for (long multiple = number * number; multiple <= limit; multiple += number) {
            composite[multiple] = true;
        }
    }
    std::cout << count << " primes up to " << limit << '\n';
    std::ofstream(std::getenv("NANOGRID_RESULT")) << count;
}
