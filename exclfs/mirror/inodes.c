/*
 * Inodes: the table of every inode that the kernel knows or that is held.
 *
 * An entry is found by its key (device and inode number on the backing tree) and by its nodeid (what the kernel calls
 * it). It goes when its last reference does; that transition happens only with both shards locked, so that whoever
 * finds an entry finds it alive. An entry whose inode has been removed, or whose number was seen on a younger inode,
 * leaves the key index at once and stays under its nodeid until the kernel forgets it.
 *
 * The nodeid is the backing inode number where that is on the root's device and free, so that it is the same after
 * a restart. The generation tells inodes apart that had one number one after the other.
 */
#include "mirror.h"

#include <stdio.h>

static uint64_t mix(uint64_t value) {
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9ULL;
    value = (value ^ (value >> 27)) * 0x94D049BB133111EBULL;
    return value ^ (value >> 31);
}

static uint64_t hash_key(struct key key) { return mix(key.ino + mix(key.dev)); }
static struct shard *key_shard(struct mirror *mirror, struct key key) {
    return &mirror->table.by_key[hash_key(key) % SHARDS];
}
static struct shard *nodeid_shard(struct mirror *mirror, uint64_t nodeid) {
    return &mirror->table.by_nodeid[mix(nodeid) % SHARDS];
}

static struct inode **bucket(struct shard *shard, uint64_t hash) {
    return &shard->buckets[(hash / SHARDS) & (shard->size - 1)];
}

static int shard_init(struct shard *shard) {
    shard->size = 64;
    shard->count = 0;
    shard->buckets = calloc(shard->size, sizeof *shard->buckets);
    if (shard->buckets == NULL) return -ENOMEM;
    return -pthread_mutex_init(&shard->lock, NULL);
}

int inodes_init(struct mirror *mirror) {
    atomic_store(&mirror->table.next_nodeid, 1UL << 63);
    for (unsigned i = 0; i < SHARDS; i++) {
        int error = shard_init(&mirror->table.by_key[i]);
        if (!error) error = shard_init(&mirror->table.by_nodeid[i]);
        if (error) return error;
    }
    return 0;
}

static void inode_free(struct mirror *mirror, struct inode *inode) {
    backing_drop(mirror, inode);
    free(inode->name);
    free(inode->handle);
    free(inode);
    atomic_fetch_sub(&mirror->table.known, 1);
}

void inodes_destroy(struct mirror *mirror) {
    /* Every worker has ended: what is left is freed without regard to references. */
    for (unsigned i = 0; i < SHARDS; i++) {
        struct shard *shard = &mirror->table.by_nodeid[i];
        for (size_t b = 0; shard->buckets != NULL && b < shard->size; b++)
            while (shard->buckets[b] != NULL) {
                struct inode *inode = shard->buckets[b];
                shard->buckets[b] = inode->next_of_nodeid;
                inode_free(mirror, inode);
            }
        free(shard->buckets);
        free(mirror->table.by_key[i].buckets);
        pthread_mutex_destroy(&shard->lock);
        pthread_mutex_destroy(&mirror->table.by_key[i].lock);
    }
}

/* ---- two intrusive hash indexes ------------------------------------------------------------------------- */

enum index { KEY, NODEID };

static struct inode **link_of(struct inode *inode, enum index index) {
    return index == KEY ? &inode->next_of_key : &inode->next_of_nodeid;
}
static uint64_t hash_of(const struct inode *inode, enum index index) {
    return index == KEY ? hash_key(inode->key) : mix(inode->nodeid);
}

static void grow(struct shard *shard, enum index index) {
    size_t size = shard->size * 2;
    struct inode **buckets = calloc(size, sizeof *buckets);
    if (buckets == NULL) return; /* longer chains are slower, not wrong */
    for (size_t b = 0; b < shard->size; b++)
        while (shard->buckets[b] != NULL) {
            struct inode *inode = shard->buckets[b];
            shard->buckets[b] = *link_of(inode, index);
            struct inode **to = &buckets[(hash_of(inode, index) / SHARDS) & (size - 1)];
            *link_of(inode, index) = *to;
            *to = inode;
        }
    free(shard->buckets);
    shard->buckets = buckets;
    shard->size = size;
}

static void insert(struct shard *shard, struct inode *inode, enum index index) {
    if (shard->count >= shard->size) grow(shard, index);
    struct inode **at = bucket(shard, hash_of(inode, index));
    *link_of(inode, index) = *at;
    *at = inode;
    shard->count++;
}

static bool take_out(struct shard *shard, struct inode *inode, enum index index) {
    for (struct inode **at = bucket(shard, hash_of(inode, index)); *at != NULL; at = link_of(*at, index))
        if (*at == inode) {
            *at = *link_of(inode, index);
            shard->count--;
            return true;
        }
    return false;
}

static struct inode *search_key(struct shard *shard, struct key key) {
    struct inode *inode = *bucket(shard, hash_key(key));
    while (inode != NULL && !same_key(inode->key, key)) inode = inode->next_of_key;
    return inode;
}

static struct inode *search_nodeid(struct shard *shard, uint64_t nodeid) {
    struct inode *inode = *bucket(shard, mix(nodeid));
    while (inode != NULL && inode->nodeid != nodeid) inode = inode->next_of_nodeid;
    return inode;
}

/* ---- references ----------------------------------------------------------------------------------------- */

void inode_get(struct inode *inode) { atomic_fetch_add_explicit(&inode->references, 1, memory_order_relaxed); }

/* Lets go of one reference. True if it was the last: then the inode is in no index any more. */
static bool was_last(struct mirror *mirror, struct inode *inode) {
    unsigned references = atomic_load(&inode->references);
    while (references > 1)
        if (atomic_compare_exchange_weak(&inode->references, &references, references - 1)) return false;

    struct shard *by_key = key_shard(mirror, inode->key), *by_nodeid = nodeid_shard(mirror, inode->nodeid);
    pthread_mutex_lock(&by_key->lock);
    pthread_mutex_lock(&by_nodeid->lock);
    bool last = atomic_fetch_sub(&inode->references, 1) == 1;
    if (last) {
        take_out(by_key, inode, KEY);
        take_out(by_nodeid, inode, NODEID);
    }
    pthread_mutex_unlock(&by_nodeid->lock);
    pthread_mutex_unlock(&by_key->lock);
    return last;
}

void inode_put(struct mirror *mirror, struct inode *inode) {
    /* The end of one may be the end of all that lead to it: a loop, for a tree can be deeper than a stack. */
    while (inode != NULL && was_last(mirror, inode)) {
        struct inode *parent = inode->parent;
        inode_free(mirror, inode);
        inode = parent;
    }
}

bool same_birth(const struct inode *inode, const struct statx *attributes) {
    if (inode->type != (attributes->stx_mode & S_IFMT)) return false;
    bool unknown = inode->birth_seconds == 0 && inode->birth_nanoseconds == 0;
    if (unknown || !(attributes->stx_mask & STATX_BTIME)) return true;
    return inode->birth_seconds == attributes->stx_btime.tv_sec &&
           inode->birth_nanoseconds == attributes->stx_btime.tv_nsec;
}

struct inode *inode_by_key(struct mirror *mirror, struct key key, const struct statx *attributes) {
    struct shard *shard = key_shard(mirror, key);
    pthread_mutex_lock(&shard->lock);
    struct inode *inode = search_key(shard, key);
    if (inode != NULL && attributes != NULL && !same_birth(inode, attributes)) inode = NULL;
    if (inode != NULL) inode_get(inode);
    pthread_mutex_unlock(&shard->lock);
    return inode;
}

struct inode *inode_by_nodeid(struct mirror *mirror, uint64_t nodeid) {
    if (nodeid == FUSE_ROOT_ID) {
        inode_get(mirror->root);
        return mirror->root;
    }
    struct shard *shard = nodeid_shard(mirror, nodeid);
    pthread_mutex_lock(&shard->lock);
    struct inode *inode = search_nodeid(shard, nodeid);
    if (inode != NULL) inode_get(inode);
    pthread_mutex_unlock(&shard->lock);
    return inode;
}

/* ---- making and meeting an inode ------------------------------------------------------------------------ */

static uint32_t generation_of(const struct file_handle_copy *handle, const struct statx *attributes) {
    uint64_t hash = 0xcbf29ce484222325ULL; /* FNV-1a */
    if (handle != NULL)
        for (unsigned i = 0; i < handle->bytes; i++) hash = (hash ^ handle->data[i]) * 0x100000001b3ULL;
    else if (attributes->stx_mask & STATX_BTIME)
        hash = mix((uint64_t)attributes->stx_btime.tv_sec * 1000000000ULL + attributes->stx_btime.tv_nsec);
    return (uint32_t)(hash ^ hash >> 32);
}

/* Inserts into both indexes. The key shard is locked. */
static void publish(struct mirror *mirror, struct shard *by_key, struct inode *inode) {
    bool natural = mirror->root == NULL || (inode->key.dev == mirror->root->key.dev && inode->key.ino > FUSE_ROOT_ID);
    if (mirror->root == NULL) inode->nodeid = FUSE_ROOT_ID;
    else inode->nodeid = natural ? inode->key.ino : atomic_fetch_add(&mirror->table.next_nodeid, 1);
    for (;;) {
        struct shard *by_nodeid = nodeid_shard(mirror, inode->nodeid);
        pthread_mutex_lock(&by_nodeid->lock);
        if (search_nodeid(by_nodeid, inode->nodeid) == NULL) {
            insert(by_nodeid, inode, NODEID);
            pthread_mutex_unlock(&by_nodeid->lock);
            break;
        }
        pthread_mutex_unlock(&by_nodeid->lock);
        inode->nodeid = atomic_fetch_add(&mirror->table.next_nodeid, 1);
    }
    insert(by_key, inode, KEY);
}

static struct inode *inode_new(struct mirror *mirror, struct inode *parent, const char *name, int parent_fd,
                               const struct statx *attributes) {
    struct inode *inode = calloc(1, sizeof *inode);
    if (inode == NULL) return NULL;
    inode->name = strdup(name);
    if (inode->name == NULL) {
        free(inode);
        return NULL;
    }
    inode->key = key_of(attributes);
    inode->type = attributes->stx_mode & S_IFMT;
    if (mirror->births && attributes->stx_mask & STATX_BTIME) {
        inode->birth_seconds = attributes->stx_btime.tv_sec;
        inode->birth_nanoseconds = attributes->stx_btime.tv_nsec;
    }
    inode->fd = -1;
    if (parent_fd >= 0) inode->handle = backing_handle(mirror, parent_fd, name);
    inode->generation = generation_of(inode->handle, attributes);
    inode->parent = parent;
    if (parent != NULL) inode_get(parent);
    atomic_fetch_add(&mirror->table.known, 1);
    return inode;
}

static void remember(struct inode *inode, unsigned lookups) { /* the key shard is locked */
    if (lookups > 0 && inode->nlookup == 0) inode_get(inode);
    inode->nlookup += lookups;
}

void inode_looked_up(struct mirror *mirror, struct inode *inode) {
    struct shard *shard = key_shard(mirror, inode->key);
    pthread_mutex_lock(&shard->lock);
    remember(inode, 1);
    pthread_mutex_unlock(&shard->lock);
}

struct inode *inode_seen(struct mirror *mirror, struct inode *parent, const char *name, int parent_fd,
                         const struct statx *attributes, unsigned lookups) {
    struct key key = key_of(attributes);
    struct shard *shard = key_shard(mirror, key);
    struct inode *made = NULL;
    for (;;) {
        pthread_mutex_lock(&shard->lock);
        struct inode *inode = search_key(shard, key);
        if (inode != NULL && !same_birth(inode, attributes)) {
            take_out(shard, inode, KEY); /* the number has been given to a younger inode behind the mount */
            inode = NULL;
        }
        bool known = inode != NULL;
        if (!known && made != NULL) {
            inode = made;
            publish(mirror, shard, made);
        }
        if (inode != NULL) {
            inode_get(inode);
            remember(inode, lookups);
        }
        pthread_mutex_unlock(&shard->lock);
        if (inode == NULL) {
            made = inode_new(mirror, parent, name, parent_fd, attributes);
            if (made == NULL) return NULL;
            continue;
        }
        if (made != NULL && made != inode) { /* somebody else was faster */
            inode_free(mirror, made);
            if (parent != NULL) inode_put(mirror, parent);
        }
        if (known && parent != NULL) inode_moved(mirror, inode, parent, name);
        return inode;
    }
}

/* Each inode keeps its parent known. Of two directories that changed places behind the mount each may have been seen in
 * the other: nothing would ever let go of such a circle. A directory that the kernel has forgotten is looked up before
 * anybody uses it, so that its place may be forgotten too. */
static void leave_circle(struct mirror *mirror, struct inode *directory) {
    if (tree_is_below(mirror, directory, directory)) inode_lost(mirror, directory);
}

void inode_forget(struct mirror *mirror, uint64_t nodeid, uint64_t lookups) {
    if (nodeid == FUSE_ROOT_ID) return;
    struct inode *inode = inode_by_nodeid(mirror, nodeid);
    if (inode == NULL) return;
    struct shard *shard = key_shard(mirror, inode->key);
    pthread_mutex_lock(&shard->lock);
    bool forgotten = inode->nlookup > 0 && inode->nlookup <= lookups;
    inode->nlookup = inode->nlookup > lookups ? inode->nlookup - lookups : 0;
    pthread_mutex_unlock(&shard->lock);
    /* Besides the kernel's reference and this one: children, as a rule. */
    if (forgotten && S_ISDIR(inode->type) && atomic_load(&inode->references) > 2) leave_circle(mirror, inode);
    if (forgotten) inode_put(mirror, inode);
    inode_put(mirror, inode);
}

void inode_gone(struct mirror *mirror, struct inode *inode) {
    struct shard *shard = key_shard(mirror, inode->key);
    pthread_mutex_lock(&shard->lock);
    atomic_store(&inode->removed, true);
    take_out(shard, inode, KEY);
    pthread_mutex_unlock(&shard->lock);
}

/* ---- places: where an inode was seen last ---------------------------------------------------------------- */

static pthread_mutex_t *place_lock(struct mirror *mirror, const struct inode *inode) {
    return &mirror->place_locks[mix((uintptr_t)inode) % PLACE_LOCKS];
}

void inode_moved(struct mirror *mirror, struct inode *inode, struct inode *parent, const char *name) {
    if (inode == mirror->root || inode == parent) return;
    pthread_mutex_t *lock = place_lock(mirror, inode);
    pthread_mutex_lock(lock);
    bool same = inode->parent == parent && strcmp(inode->name, name) == 0;
    pthread_mutex_unlock(lock);
    if (same) return;
    char *copy = strdup(name);
    if (copy == NULL) return; /* an old hint is verified before it is believed */
    inode_get(parent);
    pthread_mutex_lock(lock);
    struct inode *before = inode->parent;
    char *old = inode->name;
    inode->parent = parent;
    inode->name = copy;
    pthread_mutex_unlock(lock);
    free(old);
    /* A hold that begins to reach below after this was looked at changes the tree itself. */
    if (before != parent && S_ISDIR(inode->type) && atomic_load(&mirror->tree.below) > 0) tree_changed(mirror);
    if (before != NULL) inode_put(mirror, before);
    if (!atomic_load(&inode->removed)) backing_unpin(mirror, inode);
}

void inode_lost(struct mirror *mirror, struct inode *inode) {
    pthread_mutex_t *lock = place_lock(mirror, inode);
    pthread_mutex_lock(lock);
    struct inode *before = inode->parent;
    inode->parent = NULL;
    pthread_mutex_unlock(lock);
    if (before != NULL) inode_put(mirror, before);
}

struct inode *inode_parent(struct mirror *mirror, struct inode *inode) {
    pthread_mutex_t *lock = place_lock(mirror, inode);
    pthread_mutex_lock(lock);
    struct inode *parent = inode->parent;
    if (parent != NULL) inode_get(parent);
    pthread_mutex_unlock(lock);
    return parent;
}

/* Copies the place of an inode; the parent comes with a reference, NULL for the root. */
struct inode *inode_place(struct mirror *mirror, struct inode *inode, char name[NAME_MAX + 1]) {
    pthread_mutex_t *lock = place_lock(mirror, inode);
    pthread_mutex_lock(lock);
    struct inode *parent = inode->parent;
    if (parent != NULL) {
        inode_get(parent);
        snprintf(name, NAME_MAX + 1, "%s", inode->name);
    }
    pthread_mutex_unlock(lock);
    return parent;
}

/* Writes the path from its end; a path that does not fit, or runs in a circle, begins with "...". */
size_t inode_path(struct mirror *mirror, struct inode *directory, const char *name, char *path, size_t size) {
    char *begin = path + size - 1, part[NAME_MAX + 1];
    *begin = 0;
    size_t length = strlen(name);
    if (length > size - 8) length = size - 8;
    begin -= length;
    memcpy(begin, name, length);

    struct inode *at = directory, *parent;
    inode_get(at);
    for (unsigned depth = 0; (parent = inode_place(mirror, at, part)) != NULL; depth++) {
        inode_put(mirror, at);
        at = parent;
        size_t more = strlen(part);
        bool separator = *begin != 0;
        if (depth > 4096 || (size_t)(begin - path) < more + 6) {
            begin -= 4;
            memcpy(begin, ".../", 4);
            break;
        }
        if (separator) *--begin = '/';
        begin -= more;
        memcpy(begin, part, more);
    }
    inode_put(mirror, at);
    size_t total = (size_t)(path + size - 1 - begin);
    memmove(path, begin, total + 1);
    return total;
}

size_t inode_own_path(struct mirror *mirror, struct inode *inode, char *path, size_t size) {
    return inode_path(mirror, inode, "", path, size);
}

/* st_ino as programs see it: the backing number on the root's device; elsewhere the device is folded into the high
 * bits, so that inodes of several filesystems in one tree do not collide. */
uint64_t shown_ino(const struct mirror *mirror, dev_t dev, ino_t ino) {
    if (dev == mirror->root->key.dev) return ino;
    return ino ^ (mix(dev) | 1) << 48;
}
