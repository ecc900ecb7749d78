/*
 * The mirror: everything that the C sources of this directory share.
 *
 *   mirror       one tree: what it is made of
 *   channel      /dev/fuse: the session, its workers, replies
 *   leader       which worker reads the next request
 *   idle         what processors do meanwhile
 *   request      a message of the kernel, taken apart and checked
 *   operations   which function answers which opcode
 *   entries attributes xattrs files directories removals    the operations
 *   listing      the entries of an open directory, from any of them
 *   inodes       the table: every inode that the kernel knows or that is held
 *   places       where an inode was seen last
 *   nested       what of the tree lies on another mount or device than its root
 *   mounts       the mounts that there are
 *   ways         how a directory can be reached by several of them
 *   backing      a descriptor for an inode, from a budget; identity verified
 *   locks        the stripes that make removals and trylocks linearisable
 *   tree         what reaches below a directory: the tree lock, coverage, ancestors
 *   questions    requests that wait for a verdict of the policy
 *   writeback    what did not reach the disk, told once to each
 *   gates        requests that are stopped before or after they are served, for tests
 *   opens        which processes have an inode open, where that counts against removals
 *   paths        a path below the root, looked up as somebody else
 *   identity     an inode told apart from every other, across restarts
 *   requester    doing something as the user who asked for it
 *   module       the Python face
 *
 * Order of locks, outermost first: tree lock > stripe, by address > learning > moving > io lock > key shard > nodeid
 * shard > place lock > budget, mounts. The gates' lock and the leader's are taken alone. None is held while a request
 * waits for a verdict, or stands at a gate.
 */
#ifndef EXCLFS_MIRROR_H
#define EXCLFS_MIRROR_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#include "fuse_abi.h"

/* ---- requests ------------------------------------------------------------------------------------------- */

enum { BODY_MAX = 1 << 20, MESSAGE_MAX = BODY_MAX + 4096, QUESTION_MAX = 128 << 10 };

/* A request of the kernel. The pointers lead into the message that it was parsed from. */
struct request {
    const struct fuse_in_header *header;
    const void *argument;    /* the fixed part, of the size that the opcode has */
    const char *name;        /* first name, or NULL */
    const char *second_name; /* of a rename; the target of a symlink */
    const void *data;        /* of a write or setxattr */
    size_t data_size;
};

/* 0, or the errno that the request deserves (EINVAL; ENOSYS for an opcode that nobody here answers). */
int request_parse(const void *message, size_t size, struct request *request);

/* ---- what each noun is made of, a header for those that belong together ----------------------------------- */

struct mirror;
struct worker;
enum { MOST_ABOVE = 1 << 16 }; /* directories above an inode; what was moved behind the mount may look like a circle */

#include "inodes.h"
#include "locks.h"
#include "questions.h"

/* ---- the mirror ----------------------------------------------------------------------------------------- */

enum open_files { OPEN_FILES_OFF, OPEN_FILES_OWN, OPEN_FILES_ALL };

struct settings {
    double entry_timeout, attr_timeout, negative_timeout; /* seconds */
    double decision_timeout;            /* seconds */
    unsigned threads;
    unsigned descriptors; /* the budget of the inode table, and as many again that are pinned */
    unsigned opens;       /* descriptors of open files and directories; 0: as many as the system gives */
    bool passthrough;     /* use it where the kernel has it */
    bool ask_always;
    bool privileged; /* root: may act as the requester, may open by handle */
    enum open_files hold_open; /* whose open files count against removals */
    bool gates; /* requests can be stopped */
    int cpu_latency; /* of /dev/cpu_dma_latency, for writing; -1: processors halt whenever they want to */
    dev_t mounted;             /* st_dev of the mount that is served: never to be entered; 0 if there is none */
};

enum counter {
    C_LOOKUP, C_GETATTR, C_SETATTR, C_READLINK, C_CREATE, C_OPEN, C_READ, C_WRITE, C_RELEASE, C_READDIR, C_REMOVE,
    C_XATTR, C_FORGET, C_OTHER, C_ASKED, C_TIMED_OUT, C_ASKED_AGAIN, COUNTERS
};

/* Inodes that have a descriptor, in the order of use. */
struct order {
    struct inode *newest, *oldest;
    unsigned count;
};

/* Inodes of which something could not be written back, the last ones: under the lock. */
enum { FAILURES = 64 };
struct failures {
    pthread_mutex_t lock;
    atomic_uint failures; /* their number so far */
    struct failure {
        struct key key;
        unsigned number;
        int error;
    } last[FAILURES];
};

struct leader {
    pthread_mutex_t lock;
    pthread_cond_t vacant, tick;
    atomic_uintptr_t is; /* the worker that leads, and whether it serves what it has read; 0: nobody */
    unsigned followers;  /* that wait until there is no leader; under the lock */
    bool watched;        /* one more looks every tick; under the lock */
    atomic_bool watcher_asleep;
    atomic_ulong served; /* requests, at least begun */
    atomic_uint at_work; /* workers that serve one */
    atomic_uint slow;    /* > 0 while the backing filesystem keeps workers waiting */
    unsigned enough;     /* at work at a time, while it does not */
    uint64_t patience, most_patience; /* ns for which the leader asks before it sleeps */
};

/* Whether processors poll for the next request (idle.c): the leader's. */
struct idle {
    bool polls;
    unsigned in_a_row; /* requests that came soon after the one before */
};

enum { LISTINGS = 64 };

/* Directories that were listed, and lookups that listing more of their inodes would have spared (directories.c). */
struct listings {
    atomic_ulong begun_short[LISTINGS]; /* directories, each at its own place */
    atomic_uint missed;
};
enum { MOST_WORKERS = 1024 };

struct mirror {
    struct settings settings;
    int device;       /* /dev/fuse */
    int source;       /* the root of the backing tree, O_RDONLY | O_DIRECTORY: also the mount for file handles */
    int proc;         /* /proc */
    int proc_self_fd; /* the working directory of every worker: "17" there is descriptor 17 */
    int finished;     /* eventfd, written when the mount has ended */
    atomic_bool ended;
    atomic_uint workers_left;
    atomic_uint workers;
    atomic_uint away;          /* of them, those that may wait for another server */
    pthread_mutex_t replacing; /* one more thread is made at a time */
    pthread_t threads[MOST_WORKERS];
    bool started;
    sem_t begun; /* posted by each thread that start() makes, once it can serve or has failed to */
    atomic_int begin_error;

    struct {
        dev_t dev;     /* of the root of the tree */
        uint64_t mount; /* by which the root is reached */
        bool local;     /* what its filesystem says of an inode without asking anybody is true */
    } home;
    struct mounts {
        pthread_mutex_t lock;
        int fd; /* /proc/self/mountinfo */
        struct known_mount {
            int id;
            dev_t dev;
            uint8_t limits;
            bool distant;       /* its filesystem may keep us waiting */
            bool local;         /* it asks nobody */
            char *root, *point; /* which of its directories is mounted, and where: both without escapes */
        } *all;
        size_t number;
        unsigned long readings; /* how often the list has been read */
        pthread_mutex_t learning; /* one learns the ways, and others wait until they are known */
        unsigned long learnt;     /* after which of the readings that was */
        uint64_t parts;           /* what of them shows a part of the tree, as a hash */
        struct inode **kept;      /* the directories in the tree where mounts are, each with a reference */
        size_t kept_number;
    } mounts;
    struct leader leader;
    struct idle idle;
    struct nested *nested; /* the devices of the tree other than the root's */
    struct inode_table table;
    struct inode *root;
    struct stripes stripes;
    struct tree tree;
    pthread_mutex_t place_locks[PLACE_LOCKS];
    pthread_mutex_t io_locks[PLACE_LOCKS];

    struct {
        pthread_mutex_t lock;
        struct order spare, nested, pinned; /* what would be opened again on the root's mount, and on others */
        unsigned limit;                     /* of the first two together, and of the last */
    } budget;
    atomic_uint opens; /* descriptors of open files and directories */

    struct failures writeback;
    struct questions questions;
    struct gates gates;
    struct listings listings;
    atomic_bool handles; /* file handles of the root device can be opened */
    bool flushes;        /* closing a file does something on the root device's filesystem */
    atomic_bool passthrough;
    bool births; /* the backing filesystem's birth times tell inodes apart */
    atomic_ulong counters[COUNTERS];
};

/* A thread at work: its buffers, and as whom it runs at the moment. */
struct worker {
    struct mirror *mirror;
    char *in, *out; /* MESSAGE_MAX each */
    uid_t fsuid;
    gid_t fsgid;
    mode_t umask;
    unsigned permitted[2]; /* capabilities that it can have */
    unsigned slot;         /* of the tree lock */
    unsigned given_up;     /* of the first word, those that it does not have at the moment */
    uid_t own_uid;
    gid_t own_gid;
    struct question *verdict; /* PROCEED of this question is being carried out, or NULL */
    struct sighting *sighting; /* of the request at work, if it is watched; goes with its reply or its question */
    uint64_t began; /* when it was read, by CLOCK_MONOTONIC, ns */
    long put_aside; /* how often this thread was, when that was asked last */
};

/* mirror.c */
int mirror_new(struct mirror **made, int source, int device, int channel, struct settings settings); /* 0 or -errno */
void mirror_free(struct mirror *mirror); /* its threads have been stopped */

/* paths.c */
int path_way(struct mirror *mirror, const char *path, struct inode *way[MOST_ABOVE]);
int path_known(struct mirror *mirror, const char *path, struct inode **found); /* 0, -ESTALE: nothing is there, -errno */
/* Whether this user may do this (R_OK, W_OK, X_OK) to the inode: 0, -EACCES or -errno. */
int path_access(struct mirror *mirror, struct inode *inode, uid_t uid, gid_t gid, const gid_t *groups, size_t count,
                int mask);
int path_resolve(struct mirror *mirror, const char *path, uid_t uid, gid_t gid, const gid_t *groups, size_t count,
                 struct inode **found);

/* channel.c */
int channel_mount(const char *mountpoint, const char *source, const char *type, unsigned long flags, const char *data);
int channel_start(struct mirror *mirror);
void channel_stop(struct mirror *mirror);
void channel_replace(struct mirror *mirror); /* if every worker may be waiting for another server, there is one more */
int worker_begin(struct worker *worker, struct mirror *mirror); /* 0 or -errno, which start() hears of too */
void worker_end(struct worker *worker);
int reply(struct worker *worker, uint64_t unique, const void *body, size_t size); /* 0 or -errno of the write */
void reply_error(struct worker *worker, uint64_t unique, int error);              /* error: positive errno, or 0 */
void tell_attributes_changed(struct mirror *mirror, uint64_t nodeid);
void negotiate(struct worker *worker, const struct request *request);

/* leader.c */
int leader_init(struct mirror *mirror);
void leader_destroy(struct mirror *mirror);
ssize_t leader_read(struct worker *worker);  /* waits for a request: as read(2), or 0 at the end */
void leader_served(struct worker *worker);   /* what leader_read gave has been served */
void leader_leaves(struct worker *worker);   /* if it was this one */
void leader_relieve(struct mirror *mirror);  /* somebody else reads, if the leader serves a request */
void leader_end(struct mirror *mirror);      /* wakes all who follow: the mirror has ended */

/* idle.c */
void idle_begins(struct mirror *mirror);                /* the leader has nothing to do */
void idle_ends(struct mirror *mirror, uint64_t waited); /* a request came, after so many ns */
void idle_halts(struct mirror *mirror);                 /* processors may halt again */
int idle_moment(const struct mirror *mirror); /* ms without a request after which they shall; -1: they may already */

/* A window that a lock closes, widened on purpose in a test build. */
static inline void window(void) {
#ifdef EXCLFS_TEST_WINDOW_US
    usleep(EXCLFS_TEST_WINDOW_US);
#endif
}

static inline void count(struct mirror *mirror, enum counter counter) {
    atomic_fetch_add_explicit(&mirror->counters[counter], 1, memory_order_relaxed);
}

/* operations.c: answers one request, or hands it to the policy. */
void serve(struct worker *worker, const struct request *request);

/* nested.c */
int nested_init(struct mirror *mirror);
void nested_destroy(struct mirror *mirror);
void nested_begin(void); /* a thread that serves: other servers know it by its name */
void nested_serve(struct mirror *mirror, uint32_t pid); /* it works for this thread now; 0: for nobody else */
/* What is there, without ever asking our own mount: 0, -ELOOP if it is that, or -errno. */
int stat_at(struct mirror *mirror, int fd, const char *name, struct statx *attributes);
/* What the mount forbids by which (fd, name) was just seen in this directory, which may be NULL. */
uint8_t nested_limits(struct mirror *mirror, struct inode *parent, int fd, const char *name,
                      const struct statx *attributes);
uint64_t shown_ino(const struct mirror *mirror, dev_t dev, ino_t ino);
/* Whether serving this inode to who asks would have one server wait for another that may wait for it. */
bool nested_is_loop(struct mirror *mirror, const struct inode *inode);

/* mounts.c */
int mounts_init(struct mirror *mirror);
void mounts_destroy(struct mirror *mirror);
uint8_t mounts_limits(struct mirror *mirror, int fd); /* of the mount that the descriptor is on */
enum filesystem { LOCAL, OF_A_SERVER, OTHER_FILESYSTEM }; /* asks nobody; asks a process (FUSE); may ask somebody */
enum filesystem mounts_filesystem(struct mirror *mirror, int fd); /* that the descriptor is on */
struct mounts *mounts_lock(struct mirror *mirror);    /* the list as it is now */
int mounts_id(const struct mirror *mirror, int fd);   /* in that list, of the mount that the descriptor is on */

/* ways.c */
void ways_learn(struct mirror *mirror); /* every way to every directory that is reached by several is known */

/* requester.c */
int requester_begin(struct worker *worker); /* prepares a thread; 0 or -errno */
int become(struct worker *worker, const struct fuse_in_header *header); /* ids, and no reserve; 0 or errno */
int become_if_able(struct worker *worker, const struct fuse_in_header *header);
int become_creator(struct worker *worker, const struct fuse_in_header *header, mode_t umask);
int become_writer(struct worker *worker, const struct fuse_in_header *header, bool strip);
int become_nobody(struct worker *worker, bool strip);
int become_lister(struct worker *worker, const struct fuse_in_header *header);
void become_server(struct worker *worker); /* back to what the server is */
int run_as(uid_t uid, gid_t gid, const gid_t *groups, size_t count, int (*work)(void *), void *argument);

/* identity.c */
struct identity {
    ino_t ino;
    int64_t birth_seconds;
    uint32_t birth_nanoseconds, generation;
    mode_t type;
    bool nested; /* on another device than the root */
    struct handle handle;
};
void identity_of(const struct mirror *mirror, const struct inode *inode, struct identity *identity);
/* Finds that very inode again; it comes with a reference. 0, -ESTALE if it is not in this tree any more, or -errno. */
int identity_restore(struct mirror *mirror, const struct identity *identity, const char *path, struct inode **found);

#include "operations.h"

#endif
