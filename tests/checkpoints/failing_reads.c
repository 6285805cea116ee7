/* read() and pread() fail with errno FAIL_WITH on files whose path holds FAIL_ON, while FAIL_WHILE
   exists: a disk that gives errors, for LD_PRELOAD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int fails(int descriptor) {
  char link[64], path[4096];
  if (!getenv("FAIL_WHILE") || access(getenv("FAIL_WHILE"), F_OK)) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  if (!strstr(path, getenv("FAIL_ON"))) return 0;
  errno = atoi(getenv("FAIL_WITH"));
  return 1;
}

ssize_t read(int descriptor, void *data, size_t size) {
  ssize_t (*real)(int, void *, size_t) = dlsym(RTLD_NEXT, "read");
  return fails(descriptor) ? -1 : real(descriptor, data, size);
}

ssize_t pread(int descriptor, void *data, size_t size, off_t offset) {
  ssize_t (*real)(int, void *, size_t, off_t) = dlsym(RTLD_NEXT, "pread");
  return fails(descriptor) ? -1 : real(descriptor, data, size, offset);
}

ssize_t pread64(int descriptor, void *data, size_t size, off64_t offset) {
  ssize_t (*real)(int, void *, size_t, off64_t) = dlsym(RTLD_NEXT, "pread64");
  return fails(descriptor) ? -1 : real(descriptor, data, size, offset);
}
