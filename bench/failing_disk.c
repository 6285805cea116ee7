/* A disk that fails, for programs that load this library before the C library (LD_PRELOAD).

   The file that FAILING_DISK names holds "ERRNO TEXT": calls on paths that contain TEXT fail with
   ERRNO, those that write alone where it says that a disk is full. While the file is empty or not
   there, every call goes through. What reads or writes an open file finds its path in /proc. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { READS, WRITES };

/* What the file says, read by system calls, which nobody here intercepts: 0 if no call fails. */
static int told(char text[PATH_MAX])
{
    char line[PATH_MAX + 16] = "";
    const char *control = getenv("FAILING_DISK");
    int file = control ? syscall(SYS_openat, AT_FDCWD, control, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return 0;
    long size = syscall(SYS_read, file, line, sizeof line - 1);
    syscall(SYS_close, file);
    int code = 0;
    return size > 0 && sscanf(line, "%d %4095[^\n]", &code, text) == 2 ? code : 0;
}

static int fails(const char *path, int use)
{
    char text[PATH_MAX];
    int before = errno, code = path ? told(text) : 0;
    int failing = code && !(code == ENOSPC && use == READS) && strstr(path, text);
    errno = failing ? code : before;
    return failing;
}

static int fails_at(int folder, const char *name, int use)
{
    char link[64], path[2 * PATH_MAX + 2] = "";
    if (folder != AT_FDCWD && (!name || name[0] != '/')) {
        int before = errno;
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        if (readlink(link, path, PATH_MAX) < 0)
            path[0] = 0;
        errno = before;
    }
    if (name) {
        strcat(path, path[0] ? "/" : "");
        strncat(path, name, PATH_MAX);
    }
    return fails(path, use);
}

static int use_of(int flags) { return flags & (O_CREAT | O_TRUNC) ? WRITES : READS; }

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define PASS_ON(failing, failed, name, ...)           \
    do {                                                \
        static __typeof__(&name) real;                \
        real = real ? real : REAL(name);              \
        return (failing) ? (failed) : real(__VA_ARGS__); \
    } while (0)

#define OPEN(name)                                                       \
    int name(const char *path, int flags, ...)                           \
    {                                                                    \
        va_list rest;                                                    \
        va_start(rest, flags);                                           \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                    \
        PASS_ON(fails(path, use_of(flags)), -1, name, path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                     \
    int name(int folder, const char *path, int flags, ...)               \
    {                                                                    \
        va_list rest;                                                    \
        va_start(rest, flags);                                           \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                    \
        PASS_ON(fails_at(folder, path, use_of(flags)), -1, name, folder, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                                      \
    FILE *name(const char *path, const char *mode)                       \
    {                                                                    \
        PASS_ON(fails(path, mode[0] == 'r' ? READS : WRITES), NULL, name, path, mode); \
    }
FOPEN(fopen)
FOPEN(fopen64)

#define MOVES(use, result, name, parameters, file, ...) \
    result name parameters { PASS_ON(fails_at(file, NULL, use), -1, name, file, __VA_ARGS__); }

#define TYPES(bytes) (int file, bytes data, size_t size)
#define TYPES_AT(bytes, place) (int file, bytes data, size_t size, place at)
#define TYPES_OF_PARTS (int file, const struct iovec *parts, int count)

MOVES(READS, ssize_t, read, TYPES(void *), file, data, size)
MOVES(READS, ssize_t, readv, TYPES_OF_PARTS, file, parts, count)
MOVES(READS, ssize_t, pread, TYPES_AT(void *, off_t), file, data, size, at)
MOVES(READS, ssize_t, pread64, TYPES_AT(void *, off64_t), file, data, size, at)
MOVES(WRITES, ssize_t, write, TYPES(const void *), file, data, size)
MOVES(WRITES, ssize_t, writev, TYPES_OF_PARTS, file, parts, count)
MOVES(WRITES, ssize_t, pwrite, TYPES_AT(const void *, off_t), file, data, size, at)
MOVES(WRITES, ssize_t, pwrite64, TYPES_AT(const void *, off64_t), file, data, size, at)

int fsync(int file) { PASS_ON(fails_at(file, NULL, WRITES), -1, fsync, file); }

ssize_t sendfile64(int to, int from, off64_t *at, size_t size)
{
    int failing = fails_at(from, NULL, READS) || fails_at(to, NULL, WRITES);
    PASS_ON(failing, -1, sendfile64, to, from, at, size);
}

int mkdir(const char *path, mode_t mode) { PASS_ON(fails(path, WRITES), -1, mkdir, path, mode); }

int rename(const char *from, const char *to)
{
    PASS_ON(fails(from, WRITES) || fails(to, WRITES), -1, rename, from, to);
}

int renameat(int old, const char *from, int new, const char *to)
{
    int failing = fails_at(old, from, WRITES) || fails_at(new, to, WRITES);
    PASS_ON(failing, -1, renameat, old, from, new, to);
}

int renameat2(int old, const char *from, int new, const char *to, unsigned flags)
{
    int failing = fails_at(old, from, WRITES) || fails_at(new, to, WRITES);
    PASS_ON(failing, -1, renameat2, old, from, new, to, flags);
}
