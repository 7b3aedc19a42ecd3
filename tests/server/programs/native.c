// A program that needs no library: linked statically, it runs on any arm64 Linux.
#include <stdio.h>
#include <sys/utsname.h>

int main(int argc, char **argv) {
    struct utsname machine;
    FILE *out = argc == 2 ? fopen(argv[1], "w") : NULL;
    if (!out || uname(&machine)) {
        return 1;
    }
    unsigned long long sum = 0;
    for (unsigned number = 1; number <= 1000; number++) {
        sum += (unsigned long long)number * number;
    }
    fprintf(out, "%s %llu\n", machine.machine, sum);
    return fclose(out) ? 1 : 0;
}
