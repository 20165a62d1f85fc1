/* A disk that is full when it is told to be: preloaded into a server, it fails what would take more room.
 *
 * While the file of FULL_DISK_FLAG is there, writes to regular files below the directory of FULL_DISK_UNDER fail with
 * ENOSPC, and so do their growth and the creation of new ones. What the process prints is let through. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static int told(void) {
    int saved = errno;
    const char *flag = getenv("FULL_DISK_FLAG");
    int is_full = flag != NULL && access(flag, F_OK) == 0;
    errno = saved;
    return is_full;
}

static int is_under(const char *path) {
    const char *under = getenv("FULL_DISK_UNDER");
    return under != NULL && strncmp(path, under, strlen(under)) == 0;
}

static int full(int fd) {
    if (fd <= 2 || !told()) return 0;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int saved = errno;
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = saved;
    if (length <= 0) return 0;
    path[length] = 0;
    return is_under(path);
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define NO_ROOM do { errno = ENOSPC; return -1; } while (0)

ssize_t write(int fd, const void *bytes, size_t count) {
    REAL(write);
    if (full(fd)) NO_ROOM;
    return real(fd, bytes, count);
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) {
    REAL(pwrite);
    if (full(fd)) NO_ROOM;
    return real(fd, bytes, count, at);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    REAL(pwrite64);
    if (full(fd)) NO_ROOM;
    return real(fd, bytes, count, at);
}

ssize_t writev(int fd, const struct iovec *pieces, int count) {
    REAL(writev);
    if (full(fd)) NO_ROOM;
    return real(fd, pieces, count);
}

int ftruncate(int fd, off_t length) {
    REAL(ftruncate);
    if (full(fd)) NO_ROOM;
    return real(fd, length);
}

int ftruncate64(int fd, off64_t length) {
    REAL(ftruncate64);
    if (full(fd)) NO_ROOM;
    return real(fd, length);
}

int fallocate(int fd, int mode, off_t at, off_t length) {
    REAL(fallocate);
    if (full(fd)) NO_ROOM;
    return real(fd, mode, at, length);
}

int posix_fallocate(int fd, off_t at, off_t length) {
    REAL(posix_fallocate);
    if (full(fd)) return ENOSPC;
    return real(fd, at, length);
}

static int creates(const char *path, int flags) {
    return (flags & O_CREAT) && told() && is_under(path) && access(path, F_OK) != 0;
}

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); }

int open(const char *path, int flags, ...) {
    REAL(open);
    MODE(flags)
    if (creates(path, flags)) NO_ROOM;
    return real(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    REAL(open64);
    MODE(flags)
    if (creates(path, flags)) NO_ROOM;
    return real(path, flags, mode);
}
