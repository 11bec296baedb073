/* Named by bcc, not used by these programs. */
#pragma once
