/* Reads and writes a file and many files below a directory, and prints a line NAME VALUE for each thing: MB/s, or acts a
 * second. What was written is on the disk before its time is over; what is read is not in this kernel's cache before. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 1 << 20, BLOCKS = 64, PAGE = 4096, SMALL_BLOCKS = 16 * BLOCK / PAGE, FILES = 300 };
static char block[BLOCK];
static const double random_s = 1.0;

static void must(int good, const char *what)
{
	if (!good) {
		perror(what);
		exit(1);
	}
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void forget(int fd)
{
	must(fsync(fd) == 0, "fsync");
	must(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) == 0, "fadvise");
}

/* Reads the file from its beginning; nothing of it is in this kernel's cache before. */
static void in_sequence(int fd, int size, int count, const char *name)
{
	forget(fd);
	must(lseek(fd, 0, SEEK_SET) == 0, "lseek");
	double begun = now();
	for (int i = 0; i < count; i++)
		must(read(fd, block, size) == size, name);
	printf("%s %f\n", name, size / 1e6 * count / (now() - begun));
}

static void sequential(int fd)
{
	double begun = now();
	for (int i = 0; i < BLOCKS; i++)
		must(write(fd, block, BLOCK) == BLOCK, "write");
	must(fsync(fd) == 0, "fsync");
	printf("write %f\n", BLOCK / 1e6 * BLOCKS / (now() - begun));
	in_sequence(fd, BLOCK, BLOCKS, "read");
	in_sequence(fd, PAGE, SMALL_BLOCKS, "small-read");
}

static void anywhere(int fd, int writing)
{
	long done = 0;
	double begun, took;
	forget(fd);
	must(posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM) == 0, "fadvise");
	begun = now();
	do {
		off_t at = (off_t)(random() % (BLOCK / PAGE * BLOCKS)) * PAGE;
		ssize_t count = writing ? pwrite(fd, block, PAGE, at) : pread(fd, block, PAGE, at);
		must(count == PAGE, writing ? "pwrite" : "pread");
		done++;
		took = now() - begun;
	} while (took < random_s);
	if (writing) {
		must(fsync(fd) == 0, "fsync");
		took = now() - begun;
	}
	printf("%s %f\n", writing ? "random-write" : "random-read", done / took);
}

static void many(void)
{
	char name[32];
	struct stat what;
	double begun = now();
	for (int i = 0; i < FILES; i++) {
		snprintf(name, sizeof name, "file-%d", i);
		int fd = open(name, O_CREAT | O_EXCL | O_WRONLY, 0644);
		must(fd >= 0 && close(fd) == 0, "create");
	}
	printf("create %f\n", FILES / (now() - begun));
	begun = now();
	for (int i = 0; i < FILES; i++) {
		snprintf(name, sizeof name, "file-%d", i);
		must(stat(name, &what) == 0, "stat");
	}
	printf("stat %f\n", FILES / (now() - begun));
	begun = now();
	for (int i = 0; i < FILES; i++) {
		snprintf(name, sizeof name, "file-%d", i);
		must(unlink(name) == 0, "unlink");
	}
	printf("unlink %f\n", FILES / (now() - begun));
}

int main(int argc, char **argv)
{
	must(argc == 2 && chdir(argv[1]) == 0, "chdir");
	for (int i = 0; i < BLOCK; i++)
		block[i] = (char)random();
	int fd = open("large", O_CREAT | O_TRUNC | O_RDWR, 0644);
	must(fd >= 0, "large");
	sequential(fd);
	anywhere(fd, 0);
	anywhere(fd, 1);
	must(close(fd) == 0 && unlink("large") == 0, "large");
	many();
	return 0;
}
