#define _GNU_SOURCE
#include "CKvasir.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

int kv_memfd(const char *name, uint64_t size) {
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) return -1;
    if (ftruncate(fd, (off_t)size) != 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) != 0) {
        int saved = errno;
        close(fd);
        errno = saved;
        return -1;
    }
    return fd;
}

int kv_memfd_reopen_read_only(int fd) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return open(path, O_RDONLY | O_CLOEXEC);
}

int kv_populate_write(void *address, size_t length) {
    while (madvise(address, length, MADV_POPULATE_WRITE) != 0) {
        if (errno == EINTR || errno == EAGAIN) continue;
        return errno;
    }
    return 0;
}

int kv_dont_fork(void *address, size_t length) {
    return madvise(address, length, MADV_DONTFORK) == 0 ? 0 : errno;
}

int kv_advise_huge_pages(void *address, size_t length) {
    return madvise(address, length, MADV_HUGEPAGE) == 0 ? 0 : errno;
}

int kv_accept(int listener) { return accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK); }

ssize_t kv_send_with_fd(int socket, const void *bytes, size_t length, int fd) {
    struct iovec iov = {.iov_base = (void *)bytes, .iov_len = length};
    union {
        char space[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    if (fd >= 0) {
        memset(&control, 0, sizeof control);
        message.msg_control = control.space;
        message.msg_controllen = sizeof control.space;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(header), &fd, sizeof(int));
    }
    return sendmsg(socket, &message, MSG_NOSIGNAL);
}

ssize_t kv_receive_with_fd(int socket, void *bytes, size_t length, int *fd) {
    struct iovec iov = {.iov_base = bytes, .iov_len = length};
    union {
        char space[CMSG_SPACE(4 * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = control.space,
                             .msg_controllen = sizeof control.space};
    *fd = -1;
    ssize_t count = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    if (count < 0) return count;
    for (struct cmsghdr *h = CMSG_FIRSTHDR(&message); h; h = CMSG_NXTHDR(&message, h)) {
        if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS) continue;
        size_t n = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n; i++) {
            int received;
            memcpy(&received, CMSG_DATA(h) + i * sizeof(int), sizeof(int));
            if (*fd < 0) *fd = received; else close(received);
        }
    }
    return count;
}

pid_t kv_peer_process(int socket, uid_t *uid) {
    struct ucred credentials;
    socklen_t length = sizeof credentials;
    if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0) return 0;
    *uid = credentials.uid;
    return credentials.pid;
}

int kv_peer_pidfd(int socket) {
    int fd = -1;
    socklen_t length = sizeof fd;
    if (getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &fd, &length) == 0) {
        fcntl(fd, F_SETFD, FD_CLOEXEC);
        return fd;
    }
    uid_t uid;
    pid_t pid = kv_peer_process(socket, &uid);
    if (pid <= 0) return -1;
    return (int)syscall(SYS_pidfd_open, pid, 0);
}

int kv_end_with_parent(pid_t parent) {
    if (getppid() != parent) return ESRCH;
    if (prctl(PR_SET_PDEATHSIG, SIGTERM) != 0) return errno;
    // The parent may have ended in between.
    if (getppid() != parent) raise(SIGTERM);
    return 0;
}

void kv_name_thread(const char *name) { pthread_setname_np(pthread_self(), name); }

int kv_pin(pid_t process, int index) {
    static cpu_set_t allowed; // As it was at the first call; the bench calls from one thread.
    if (CPU_COUNT(&allowed) == 0 && sched_getaffinity(0, sizeof allowed, &allowed) != 0) return errno;
    cpu_set_t wanted = allowed;
    if (index >= 0) {
        CPU_ZERO(&wanted);
        for (int cpu = 0, seen = 0; cpu < CPU_SETSIZE; cpu++) {
            if (CPU_ISSET(cpu, &allowed) && seen++ == index) CPU_SET(cpu, &wanted);
        }
        if (CPU_COUNT(&wanted) == 0) return ENOENT;
    }
    return sched_setaffinity(process, sizeof wanted, &wanted) == 0 ? 0 : errno;
}

int kv_open_flag_direct(void) { return O_DIRECT; }

int kv_allocate(int fd, uint64_t length) {
    while (fallocate(fd, 0, 0, (off_t)length) != 0) {
        if (errno != EINTR) return errno;
    }
    return 0;
}
