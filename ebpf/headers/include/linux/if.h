/* The UAPI header of this name pulls in libc's sockets; the others only want this number. */
#pragma once
#define IFNAMSIZ 16
