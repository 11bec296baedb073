/* bcc's ring buffer macro asks for it. */
#pragma once
#define PAGE_SIZE 4096
