/* Asks the agent of its Realm, and tries the ways that are not for it. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

int main(void)
{
    struct sockaddr_un desk = {AF_UNIX, "/run/vambrace-agent"};
    const char *request = "{\"op\": \"extend\", \"register\": 2, \"text\": \"from a container\"}\n";
    char line[500] = "";
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&desk, sizeof desk) || write(fd, request, strlen(request)) < 0 ||
        read(fd, line, sizeof line - 1) < 0)
        perror("desk");
    printf("desk: %s", line);
    printf("vsock: %s\n", socket(AF_VSOCK, SOCK_STREAM, 0) < 0 ? strerror(errno) : "open");
    printf("user namespace: %s\n", syscall(SYS_unshare, 0x10000000) < 0 ? strerror(errno) : "made");
    printf("disk: %s\n", open("/dev/vda", O_RDONLY) < 0 ? strerror(errno) : "open");
    printf("port: %s\n", open("/dev/vport1p1", O_RDWR) < 0 ? strerror(errno) : "open");
    return 0;
}
